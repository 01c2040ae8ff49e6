"""Off-policy evaluation: what a policy would have earned, estimated from what another one logged."""

from recsys.evaluation.off_policy.direct_method import direct_method
from recsys.evaluation.off_policy.doubly_robust import doubly_robust, switch_doubly_robust
from recsys.evaluation.off_policy.evaluate import Estimate, Evaluation, evaluate_policy
from recsys.evaluation.off_policy.folds import assign_folds
from recsys.evaluation.off_policy.intervals import empirical_bernstein
from recsys.evaluation.off_policy.inverse_propensity import ips, self_normalised_ips
from recsys.evaluation.off_policy.log import BanditLog, find_problems
from recsys.evaluation.off_policy.policies import epsilon_greedy, logits, softmax
from recsys.evaluation.off_policy.slates import epsilon_greedy_slate, plackett_luce
from recsys.evaluation.off_policy.support import Support, support_of
from recsys.evaluation.off_policy.target import TargetPolicy
from recsys.evaluation.off_policy.weights import effective_sample_size, importance_weights

__all__ = [
    "BanditLog",
    "Estimate",
    "Evaluation",
    "Support",
    "TargetPolicy",
    "assign_folds",
    "direct_method",
    "doubly_robust",
    "effective_sample_size",
    "empirical_bernstein",
    "epsilon_greedy",
    "epsilon_greedy_slate",
    "evaluate_policy",
    "find_problems",
    "importance_weights",
    "ips",
    "logits",
    "plackett_luce",
    "self_normalised_ips",
    "softmax",
    "support_of",
    "switch_doubly_robust",
]
