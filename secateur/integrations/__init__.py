"""Attachments: the core inside models and engines of others."""
