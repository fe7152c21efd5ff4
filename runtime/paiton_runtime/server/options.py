"""What `paiton-run serve` may choose, apart from the boot: addresses, limits, and the names that users of vLLM know."""

from __future__ import annotations

from pathlib import Path

from paiton_artifacts.record import dataclass


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Files of `--ssl-*`; `cert_reqs` is 0 (ask no certificate of clients), 1 (optional) or 2 (required)."""

    certfile: Path
    keyfile: Path | None = None
    ca_certs: Path | None = None
    cert_reqs: int = 0


@dataclass(frozen=True, slots=True)
class CorsOptions:
    """What pages of other origins may do; "*" in a list allows all."""

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of the server; see `paiton-run serve --help` for each.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        uds: path of a unix socket, in place of host and port.
        served_model_names: empty: the bundle's model name.
        api_keys: empty: nobody is asked for one.
        root_path: prefix that a proxy may have left in the path, without a slash at its end.
        chat_template: in place of the bundle's, as text.
        generation_config: where sampling parameters that requests leave open come from: "auto" (the bundle, which has
            the checkpoint's generation_config.json) or "vllm" (vLLM's own defaults).
        seed: of the requests that bring none; None: random ones.
        tool_call_parser: "auto", "hermes", "llama3_json" or "none".
        max_model_len: None: what the bundle holds; likewise for the next two.
        shutdown_timeout: seconds that a first signal leaves to the requests that run.
        header_timeout: seconds for the headers of a request.
        body_timeout: seconds for its body.
        send_timeout: seconds that a client may not read while there is something for it.
        request_timeout: seconds from headers to the end of the answer; None: no limit.
        step_timeout: seconds after which a step of the engine counts as hung.
        otlp_traces_endpoint: URL of an OpenTelemetry collector.
    """

    host: str = "0.0.0.0"  # noqa: S104  (as vLLM, whose address it takes; see --host)
    port: int = 8000
    uds: Path | None = None
    tls: TlsOptions | None = None
    cors: CorsOptions = CorsOptions()
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    root_path: str = ""
    chat_template: str | None = None
    generation_config: str = "auto"
    tool_call_parser: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_waiting: int = 1024
    enable_prefix_caching: bool = True
    seed: int | None = None
    shutdown_timeout: float = 30.0
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 60.0
    request_timeout: float | None = None
    step_timeout: float = 60.0
    max_request_bytes: int = 4 << 20
    log_requests: bool = True
    log_format: str = "text"
    otlp_traces_endpoint: str | None = None
