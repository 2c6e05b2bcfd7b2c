"""Cases of ``jaxkit.long_tailed``, a file for each branch of the survey."""

from tests.conformance.case import Case
from tests.conformance.long_tailed import augmentation, ensembles, rebalancing, representation


def cases() -> tuple[Case, ...]:
    """All of them; the first stands for the family in ``make test``."""
    return (*rebalancing.cases(), *augmentation.cases(), *representation.cases(), *ensembles.cases())
