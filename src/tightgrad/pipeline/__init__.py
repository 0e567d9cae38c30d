"""Runs a plan on an adapter."""
