"""Protocols, types, errors, method cards and configuration. Imports nothing else of TightGrad."""
