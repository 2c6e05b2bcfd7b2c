"""How the tests check annotations: beartype, with int accepted for float as Python's typing rules have it (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
