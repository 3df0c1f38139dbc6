"""One case against the server of server.py: client.py CASE TARGET ROOT.pem. Fails with a traceback."""

import itertools
import sys
import threading
import time

import grpc

case, target, root = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open(root, "rb").read())
options = [
    ("grpc.ssl_target_name_override", "a.test"),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]
channel = grpc.secure_channel(target, credentials, options)
unary = channel.unary_unary("/test.Bytes/Unary")
from_client = channel.stream_unary("/test.Bytes/FromClient")
to_client = channel.unary_stream("/test.Bytes/ToClient")
both = channel.stream_stream("/test.Bytes/Both")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def kinds():
    assert unary(b"abc", timeout=20) == b"cba"
    assert from_client(iter([b"a", b"b", b"c"]), timeout=20) == b"abc"
    assert list(to_client(b"5", timeout=20)) == [b"0", b"1", b"2", b"3", b"4"]
    # Each message is answered before the next one is sent.
    turn = threading.Semaphore(1)
    sent = []

    def requests():
        for n in range(20):
            turn.acquire()
            sent.append(n)
            yield b"m%d" % n

    for n, answer in enumerate(both(requests(), timeout=20)):
        assert answer == b"M%d" % n and len(sent) == n + 1
        turn.release()
    assert n == 19


def across():
    # Goes on when it is told to.
    turn = threading.Semaphore(1)

    def requests():
        for n in range(6):
            turn.acquire()
            yield b"m%d" % n

    for n, answer in enumerate(both(requests(), timeout=60)):
        assert answer == b"M%d" % n
        if n == 2:
            print("begun", flush=True)
            assert sys.stdin.readline() == "go on\n"
        turn.release()
    assert n == 5


def metadata():
    answer, call = unary.with_call(b"x", metadata=(("x-ask", "hello"),), timeout=100)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert initial["x-initial"] == "hello" and initial["x-bin"] == bytes([0, 255]), initial
    assert trailing["x-trailing"] == "end", trailing
    assert 90 <= int(trailing["x-deadline"]) <= 100, trailing
    stream = to_client(b"1", timeout=20)
    assert list(stream) == [b"0"]
    assert dict(stream.trailing_metadata())["x-trailing"] == "end"


def statuses():
    error = failure(lambda: unary(b"status", timeout=20))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "not today: ünd %", error
    assert dict(error.trailing_metadata())["x-trailing"] == "end"
    assert failure(lambda: unary(b"exception", timeout=20)).code() == grpc.StatusCode.UNKNOWN
    missing = channel.unary_unary("/test.Bytes/None")
    assert failure(lambda: missing(b"", timeout=20)).code() == grpc.StatusCode.UNIMPLEMENTED


def deadline():
    begin = time.monotonic()
    assert failure(lambda: unary(b"hang", timeout=1)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 10


def cancel():
    call = to_client(b"endless")
    assert next(call) == b"first"
    call.cancel()
    future = unary.future(b"hang")
    time.sleep(0.5)
    future.cancel()


def large():
    piece = bytes(range(256)) * 4096
    answers = both(itertools.repeat(piece, 8), timeout=60)
    assert all(answer == piece.upper() for answer in answers)
    assert len(from_client(iter([piece] * 8), timeout=60)) == 8 << 20


def silence():
    assert list(to_client(b"late")) == [b"0", b"1", b"2"]

    def requests():
        yield b"a"
        time.sleep(4)
        yield b"b"

    assert list(both(requests())) == [b"A", b"B"]


def thinking():
    def requests():
        yield b"a"
        time.sleep(4)
        yield b"b"

    assert from_client(requests()) == b"ab"


def mute():
    error = failure(lambda: list(to_client(b"late")))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and "request " in error.details(), error


def unavailable():
    error = failure(lambda: unary(b"x", timeout=20))
    assert error.code() == grpc.StatusCode.UNAVAILABLE and "request " in error.details(), error


def exceeded():
    error = failure(lambda: unary(b"x", timeout=20))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and "request " in error.details(), error


def unimplemented():
    error = failure(lambda: unary(b"x", timeout=20))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def many():
    calls = [unary.future(b"n%d" % n, timeout=60) for n in range(500)]
    assert all(call.result() == (b"n%d" % n)[::-1] for n, call in enumerate(calls))


globals()[case]()
channel.close()
