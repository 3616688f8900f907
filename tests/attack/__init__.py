"""Hostile folders, careless tools, kills at every write: `docs/reliability.md` says what is promised, and the counts.

By default a minute of it runs with the other tests, the same cases every time. On demand, in full:

    ATTACK=7 python -m pytest tests/attack -s

The number is the seed of everything that is random; the same number gives the same cases.
"""
