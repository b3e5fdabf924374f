"""Measurements of exemplar models: strategies, heads alone and in sets, wiring, progress measures."""
