# One static-enough binary (it needs only libc) in a small image without compilers.
#
#   docker build -t headwater .
#   docker run --rm headwater --version
#   docker run -v ./config:/etc/headwater:ro -v headwater:/var/lib/headwater headwater
#
# The versions are pinned: the compiler is the one that the tests run with.
ARG RUST=1.95.0
ARG DEBIAN=12.15-slim

FROM rust:${RUST}-slim-bookworm AS build
# The Kafka client, OpenSSL and SQLite are compiled in.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ make perl \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# The dependencies are a layer of their own, which changes only with the manifests: they are compiled over empty crates.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY connectors/api/Cargo.toml connectors/api/
COPY connectors/mysql/Cargo.toml connectors/mysql/
COPY connectors/postgres/Cargo.toml connectors/postgres/
RUN for crate in . connectors/*; do mkdir -p "$crate/src" && : > "$crate/src/lib.rs"; done \
 && echo 'fn main() {}' > src/main.rs \
 && for tests in tests benches; do mkdir $tests && : > $tests/main.rs; done \
 && cargo build --release --locked --workspace

COPY src src
COPY connectors connectors
# Cargo compares times, and the empty crates are younger than the files that were copied.
RUN find src connectors -name '*.rs' -exec touch {} + \
 && cargo build --release --locked --bin headwater \
 && target/release/headwater --version

FROM debian:${DEBIAN}
LABEL org.opencontainers.image.title="Headwater" \
      org.opencontainers.image.description="Change data capture: database tables become keyed events in topics, exactly once." \
      org.opencontainers.image.licenses="Apache-2.0"
# The authorities that TLS connections are checked against.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/target/release/headwater /usr/local/bin/
# A fixed number, so that the owner of mounted files can be chosen; no name and no shell are needed.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/headwater && install -d /etc/headwater
USER 10001:10001
WORKDIR /var/lib/headwater
VOLUME /var/lib/headwater
ENV HEADWATER_CONFIG=/etc/headwater/headwater.yaml
# HTTP listens on loopback, so the daemon is asked from inside. A connector that retries or has stopped is a matter for an
# alert, not for a restart: this only says that the process answers.
HEALTHCHECK --interval=10s --timeout=6s --start-period=15s --retries=3 CMD ["headwater", "status", "--format", "json"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["headwater"]
CMD ["run"]
