"""Engines: who does the tasks of a plan. Tasks are independent and idempotent; any order and any number is right."""
