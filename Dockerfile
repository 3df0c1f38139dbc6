# A static binary alone in an image: no shell, no package manager, no libc to patch.
#
#   docker build -t starlock .
#   docker run --read-only --cap-drop ALL -p 443:8443 -p 80:8080 \
#       -v ./starlock.toml:/etc/starlock/starlock.toml:ro -v starlock-state:/var/lib/starlock starlock
#
# The process is uid 65532 and needs no capability: let it listen above 1023 ([listen] https = ["[::]:8443"],
# http = ["[::]:8080"]) and publish the ports as you like.

# Any image with cargo and a C compiler.
ARG BUILDER=docker.io/library/rust:1-bookworm

FROM ${BUILDER} AS build
# The Rust target; musl for this machine's processor unless told. Where no musl target can be had, name the glibc one
# (x86_64-unknown-linux-gnu): it is linked statically too, and names are resolved by our own resolver, not by glibc's.
ARG TARGET=
# The cargo profile: `dist` is what is meant to be shipped; `release` builds in a fraction of its time.
ARG PROFILE=dist
WORKDIR /src
COPY . .
RUN set -eu; \
    target="${TARGET:-$(uname -m)-unknown-linux-musl}"; \
    case "$target" in \
        *-musl) rustup target add "$target"; command -v musl-gcc >/dev/null || { apt-get update && apt-get install -y --no-install-recommends musl-tools; } ;; \
        *) export RUSTFLAGS="-C target-feature=+crt-static" ;; \
    esac; \
    cargo build --locked --profile "$PROFILE" --target "$target" --bin starlock; \
    mkdir -p /image/usr/bin /image/etc/ssl/certs /image/etc/starlock /image/var/lib/starlock /image/run/starlock /image/tmp; \
    cp "target/$target/$PROFILE/starlock" /image/usr/bin/starlock; \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/; \
    printf 'starlock:x:65532:65532::/var/lib/starlock:/usr/bin/starlock\n' > /image/etc/passwd; \
    printf 'starlock:x:65532:\n' > /image/etc/group; \
    chown -R 65532:65532 /image/var/lib/starlock /image/run/starlock; \
    chmod 0700 /image/var/lib/starlock; chmod 1777 /image/tmp

FROM scratch
COPY --from=build /image/ /
ENV STATE_DIRECTORY=/var/lib/starlock RUNTIME_DIRECTORY=/run/starlock
USER 65532:65532
VOLUME ["/var/lib/starlock", "/run/starlock"]
EXPOSE 8443 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/bin/starlock", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/starlock"]
CMD ["run", "--config", "/etc/starlock/starlock.toml", "--log-format", "json"]
