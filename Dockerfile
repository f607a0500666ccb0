# One image for each program. Each image holds one static program and nothing else:
#   docker build --target bridge -t lockstep-bridge .
#   docker build --target httpedge -t lockstep-httpedge .
# The same source gives the same bytes, on every machine and at any time.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X bridge/cmd/internal/program.release=${VERSION}" -o /out/ ./cmd/bridge ./cmd/httpedge \
    && mkdir /out/data

FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
USER 65532:65532

FROM base AS httpedge
COPY --from=build /out/httpedge /httpedge
ENV HTTPEDGE_LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["/httpedge", "healthcheck"]
ENTRYPOINT ["/httpedge"]

FROM base AS bridge
COPY --from=build /out/bridge /bridge
# The files of the embedded NATS server, which runs if NATS_URL is not set.
COPY --from=build --chown=65532:65532 /out/data /data
ENV BRIDGE_NATS_DIR=/data/nats BRIDGE_NATS_LISTEN=0.0.0.0:4222 BRIDGE_LISTEN=0.0.0.0:8081
VOLUME /data
EXPOSE 4222 8081
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["/bridge", "healthcheck"]
ENTRYPOINT ["/bridge"]

# The stack's NATS server: the official one, with a folder for its volume that it can write to without root.
FROM nats:2.15.2-alpine AS nats
RUN mkdir /data && chown 65532:65532 /data
USER 65532:65532
VOLUME /data
ENTRYPOINT ["nats-server", "-c", "/etc/nats/bridge.conf"]
CMD []
