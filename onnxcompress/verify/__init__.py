"""Proof: how far two networks' answers differ, and how sure the samples make us of it."""
