"""Corpora, their common schema, protocols and batching."""
