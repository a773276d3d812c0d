"""Planners, one file each (none is built in yet; the contract is :class:`sb3_mbrl.contracts.Planner`)."""
