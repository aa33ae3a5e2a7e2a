"""Encoders of media."""
