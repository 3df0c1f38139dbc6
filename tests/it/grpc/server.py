"""A gRPC server of bytes, without generated code: server.py [CERT KEY]. Prints its port, then one line for each call that ended early."""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", metadata.get("x-ask", "")), ("x-bin", bytes([0, 255]))))
    context.set_trailing_metadata((("x-trailing", "end"), ("x-deadline", "%.0f" % (context.time_remaining() or -1))))
    if request == b"status":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: ünd %")
    if request == b"exception":
        raise RuntimeError("oops")
    if request == b"hang":
        ended = futures.Future()
        context.add_callback(lambda: ended.set_result(None))
        ended.result(60)
        print("cancelled unary", flush=True)
        return b""
    return request[::-1]


def from_client(requests, context):
    return b"".join(requests)


def to_client(request, context):
    if request == b"endless":
        ended = futures.Future()
        context.add_callback(lambda: ended.set_result(None))
        yield b"first"
        ended.result(60)
        print("cancelled stream", flush=True)
        return
    if request == b"late":
        time.sleep(5)
    for n in range(int(request) if request.isdigit() else 3):
        yield b"%d" % n
    context.set_trailing_metadata((("x-trailing", "end"),))


def both(requests, context):
    for request in requests:
        yield request.upper()


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test.Bytes/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Bytes/FromClient": grpc.stream_unary_rpc_method_handler(from_client),
            "/test.Bytes/ToClient": grpc.unary_stream_rpc_method_handler(to_client),
            "/test.Bytes/Both": grpc.stream_stream_rpc_method_handler(both),
        }.get(details.method)


options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(32), (Handler(),), options=options)
if len(sys.argv) > 2:
    chain, key = (open(path, "rb").read() for path in sys.argv[1:])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"port {port}", flush=True)
server.wait_for_termination()
