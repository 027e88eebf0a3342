"""``SleepMode``: the memory that a worker gives back while its engine sleeps."""

from collections.abc import Callable

from vllm_engine.execution.devices import Device
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.execution.residence import Residence, residence_of
from vllm_engine.logging import get_logger
from vllm_engine.messages import SleepTag

logger = get_logger(__name__)


class SleepMode:
    """Gives the memory of weights and KV cache back, and takes it again. Tables of positions stay: no file has them.

    While something is away, ``check_awake`` lets no step pass. Graphs know addresses: where memory comes back elsewhere
    they go with it, and the runner gets new ones when all is back.

    Args:
        runner: whose memory it is.
        device: where it is.
        fill: reads the weights into their places, as when the engine started.
    """

    def __init__(self, runner: ModelRunner, device: Device, fill: Callable[[], None]) -> None:
        self._runner = runner
        self._device = device
        self._fill = fill
        self._away: dict[SleepTag, Residence] = {}

    def check_awake(self) -> None:
        """Raise ``RuntimeError`` while something is away that a step needs."""
        if self._away:
            raise RuntimeError(f"the memory of {' and '.join(self._away)} was given back: only wake_up takes it again")

    def sleep(self, level: int) -> None:
        """Give memory back: that of the KV cache, which is lost, and that of the weights.

        Args:
            level: 1 keeps the weights in main memory, which on a CPU is where they are; 2 drops them.

        Raises:
            RuntimeError: main memory does not have room for the weights. Then all is as before.
        """
        before = self._device.memory(0).free
        weights = self._away.get("weights")
        if weights is None:
            weights = self._weights()
            if level == 1:
                weights.offload()
                self._note("weights", weights)
        if level == 2:
            weights.discard()
            self._note("weights", weights)
        if "kv_cache" not in self._away:
            self._discard_caches()
        self._release_unused(weights)
        self._log_gain(before)

    def release_kv_cache(self) -> None:
        """Give the memory of the KV cache alone back; what it held is lost."""
        before = self._device.memory(0).free
        self._release_unused(self._discard_caches())
        self._log_gain(before)

    def wake_up(self, tag: SleepTag) -> None:
        """Take the memory of one kind again: the KV cache is empty, the weights are as they were.

        Raises:
            ConfigError: dropped weights cannot be read again.
            RuntimeError: there is too little memory.

        After either, it may be tried again.
        """
        residence = self._away.get(tag)
        if residence is None:
            return
        if not residence.restore() and tag == "weights":
            self._read_into(residence)
        self._back(tag)
        self._release_unused(residence)

    def reload_weights(self) -> None:
        """Read the weights again. Errors as of ``wake_up``; after one, no step passes until they have been read.

        What the KV cache holds of other weights is the caller's to forget.
        """
        residence = self._away.get("weights")
        if residence is None:
            residence = self._weights()
        else:
            residence.restore()
        self._read_into(residence)
        self._back("weights")

    def _discard_caches(self) -> Residence:
        caches = residence_of(self._runner.cache_tensors(), self._device)
        caches.discard()
        self._note("kv_cache", caches)
        return caches

    def _log_gain(self, before: int) -> None:
        free = self._device.memory(0).free
        logger.info("free memory: %.2f GiB, before %.2f GiB", free / 2**30, before / 2**30)

    def _weights(self) -> Residence:
        return residence_of(self._runner.model.weight_tensors(), self._device)

    def _read_into(self, residence: Residence) -> None:
        try:
            self._fill()
        except BaseException:
            # Nobody knows which of them were read.
            residence.discard()
            self._note("weights", residence)
            self._release_unused(residence)
            raise

    def _note(self, tag: SleepTag, residence: Residence) -> None:
        """Take down what is away."""
        self._away[tag] = residence
        if not residence.in_place:
            self._runner.drop_graphs()

    def _back(self, tag: SleepTag) -> None:
        self._away.pop(tag, None)
        if not self._away:
            self._runner.make_graphs()

    def _release_unused(self, residence: Residence) -> None:
        """Give back what only torch still holds. Pages need no word of torch's, and this takes half a second."""
        if not residence.in_place:
            self._device.release_unused()
