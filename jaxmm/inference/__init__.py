"""Answers: tokens one after the other, and when to stop."""
