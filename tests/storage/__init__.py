"""Databases: the contract that every driver passes, and what is peculiar to one."""
