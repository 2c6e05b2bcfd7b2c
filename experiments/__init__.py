"""One file per study: ``python -m experiments`` lists them, ``python -m experiments.<name>`` runs one."""
