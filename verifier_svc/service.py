"""What a verifier runs: it loads the model, serves gRPC and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import Executor

import torch

from paceline.engine import parallel
from paceline.engine.engine import Engine
from paceline.engine.loading import ModelError
from paceline.engine.memory import kv_blocks
from paceline.engine.model import Decoder, choose_device
from paceline.engine.parallel import RankLostError, Ranks
from paceline.models.store import NoSuchFolderError, check_model
from paceline.net.roles import Role
from paceline.net.rpc import MAX_STREAMS, check_free, run_service, start_server
from paceline.net.tls import Identity
from paceline.service import garbage, metrics, telemetry
from paceline.service.machine import usable_cores
from paceline.service.settings import SettingsError
from paceline.service.tasks import let_end
from paceline.store import RedisStore, SessionStore
from paceline.v1 import verifier_pb2_grpc
from verifier_svc.assembly import Verifier
from verifier_svc.config import VerifierSettings
from verifier_svc.step import engine_thread

log = telemetry.logger(__name__)

# For what calls still have to say when all sessions have ended.
_LAST_WORDS_SECONDS = 0.5


async def serve(
    settings: VerifierSettings,
    store: SessionStore | None,
    identity: Identity | None,
    engine: Engine,
    thread: Executor,
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set, then let running sessions end within the grace period."""
    verifier = Verifier(settings, store, engine, thread, on_failure=stop.set)
    served = verifier.served
    metrics.label(model_name=served.model_id, pool=settings.pool)
    async with verifier.running():
        server = await start_server(
            lambda grpc_server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(
                verifier.servicer, grpc_server
            ),
            services=["paceline.v1.VerifierService"],
            host=settings.host,
            port=settings.port,
            max_receive_bytes=settings.message_bytes(served.max_context),
            # Those that gateways have given up may end a little later.
            max_streams=2 * settings.max_sessions + MAX_STREAMS,
            identity=identity,
        )
        log.info(
            "ready",
            address=server.address,
            model=served.model_id,
            device=served.device,
            exact=engine.exact,
            fused=engine.fused,
            ranks=engine.shape.ranks,
            kv_tokens=engine.kv_tokens,
            kv_bytes_per_token=engine.kv_bytes,
            **_price(engine),
        )
        await stop.wait()
        verifier.refuse_sessions()
        await server.not_serving()
        # Drafters' streams would outlast it.
        await let_end(lambda: verifier.committer.busy, settings.grace_seconds)
        await server.stop(_LAST_WORDS_SECONDS)
    if verifier.committer.failed:
        # Whoever keeps this process running is to start it anew.
        raise SystemExit(1)


def run(settings: VerifierSettings) -> None:
    """Load the model and serve it. Raises `SettingsError` when the model or a certificate cannot be used."""
    ranks = Ranks.launched()
    # Followers have nothing to count, and the leader may be on this machine.
    telemetry.setup("verifier", settings if ranks.leads else settings.model_copy(update={"metrics_port": 0}))
    try:
        check_model(settings.model)
    except NoSuchFolderError as error:
        raise SettingsError(f"--model: {error}") from error
    if ranks.leads:
        # Before minutes are spent on loading.
        check_free(settings.host, settings.port)
    identity = Identity.of_service(settings, Role.VERIFIER)
    # The engine's thread gives the interpreter lock up at every kernel; the event loop must not keep it
    # for the default 5 ms then, a sixth of a step.
    sys.setswitchinterval(0.0005)
    store = None
    if settings.redis_url:
        store = RedisStore(settings.redis_url.get_secret_value(), ttl_seconds=settings.session_ttl_seconds)
    else:
        log.warning("no redis_url: sessions are not durable and cannot move to another verifier")
    with engine_thread() as thread:
        try:
            engine = thread.submit(_load, settings, ranks).result()
        except ModelError as error:
            raise SettingsError(str(error)) from error
        try:
            if ranks.leads:
                run_service(lambda stop: serve(settings, store, identity, engine, thread, stop))
                thread.submit(ranks.end).result()
            else:
                _follow(ranks, engine, thread)
        except RankLostError as error:
            log.error("rank lost", rank=ranks.rank, ranks=ranks.size, error=str(error))
            raise SystemExit(1) from error


def _follow(ranks: Ranks, engine: Engine, thread: Executor) -> None:
    # torchrun passes a signal on to all ranks, and the leader needs them as long as it drains.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    garbage.spare()
    log.info("following", rank=ranks.rank, ranks=ranks.size, kv_tokens=engine.kv_tokens)
    thread.submit(parallel.follow, ranks, engine).result()


def _load(settings: VerifierSettings, ranks: Ranks) -> Engine:
    """This rank's engine, with as many blocks of KV as every rank has room for."""
    # torch counts the affinity mask and OMP_NUM_THREADS, but no quota.
    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), usable_cores()))
    decoder = parallel.load(
        settings.model,
        device=choose_device(settings.device),
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        ranks=ranks,
        trust_remote_code=settings.trust_remote_code,
    )
    kept = _kept_layers(settings, decoder)
    blocks = kv_blocks(
        decoder,
        kv_tokens=settings.kv_tokens,
        max_sessions=settings.max_sessions,
        kept_layers=len(kept),
        local_ranks=ranks.local_size,
    )
    return parallel.engine_of(decoder, ranks.least(blocks), ranks, kept)


def _kept_layers(settings: VerifierSettings, decoder: Decoder) -> tuple[int, ...]:
    """The layers whose states are kept; all ranks look for them. Raises `ModelError`."""
    if not settings.keep_states:
        return ()
    try:
        return decoder.layers.named(settings.keep_states)
    except ModelError as error:
        raise ModelError(f"--keep-states {settings.keep_states}: {error}") from error


def _price(engine: Engine) -> dict[str, object]:
    """What kept states take, as the log shows it; empty where none are kept."""
    if not engine.kept_layers:
        return {}
    states, keys_and_values = engine.state_bytes, engine.kv_bytes
    return {
        "kept_states": ",".join(map(str, engine.kept_layers)),
        "state_bytes_per_token": states,
        "states_of_kv": f"{states / keys_and_values:.1%}",
    }
