"""Attachments: the core inside models and engines of others.

`secateur.attach` and `secateur.prune_inputs` live in `attach`; each model family is one file that
says where its tower, projector, placeholders, positions, grids and crops are.
"""
