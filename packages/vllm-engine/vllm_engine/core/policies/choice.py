"""The policy that the settings name."""

from collections.abc import Callable

from vllm_engine.config import EngineConfig
from vllm_engine.core.limits import EngineLimits
from vllm_engine.core.policies.fair import FairPolicy
from vllm_engine.core.policies.policy import Policy
from vllm_engine.core.policies.prompts_first import PromptsFirst
from vllm_engine.core.policies.recent_use import LEAST_STEP_TOKENS, RecentUse
from vllm_engine.core.policies.tenants import PROMPT_TOKEN_COST, Tenants
from vllm_engine.core.policies.waiting import WaitingRequests, fcfs_order, priority_order
from vllm_engine.core.request import Request


def make_policy(
    config: EngineConfig, limits: EngineLimits, is_long: Callable[[Request], bool], clock: Callable[[], float]
) -> Policy:
    """The policy of ``--scheduling-policy``, without requests.

    Args:
        config: the settings.
        limits: what fits the engine.
        is_long: whether a waiting request counts as long.
        clock: seconds that only grow.
    """
    name = config.scheduler.scheduling_policy
    if name == "fcfs":
        return PromptsFirst(fcfs_order, WaitingRequests(fcfs_order, is_long), clock)
    if name == "priority":  # nobody stands back for a request that comes after them
        return Policy(priority_order, WaitingRequests(priority_order, is_long))
    recent = RecentUse(LEAST_STEP_TOKENS[config.device.kind], clock)
    tenants = Tenants(limits.max_num_seqs, PROMPT_TOKEN_COST * limits.max_num_batched_tokens, recent)
    return FairPolicy(tenants, is_long, chunked=config.scheduler.chunked_prefill)
