"""The tests; run them with ``pytest`` from the folder above this one."""
