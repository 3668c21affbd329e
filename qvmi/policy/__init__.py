"""What a session or a codepack may do to a guest: grants, their limits, and the gate that holds to them."""

from qvmi.policy.gate import PolicyGate
from qvmi.policy.grant import Grant
from qvmi.policy.limits import ADDRESSES, UNLIMITED, AddressRange, Limits, Space
from qvmi.policy.policy import OBSERVE, READ_ONLY, Policy, refuse
from qvmi.policy.policy_file import Policies, parse_policies, read_policies

__all__ = [
    "ADDRESSES",
    "OBSERVE",
    "READ_ONLY",
    "UNLIMITED",
    "AddressRange",
    "Grant",
    "Limits",
    "Policies",
    "Policy",
    "PolicyGate",
    "Space",
    "parse_policies",
    "read_policies",
    "refuse",
]
