"""Figures and the demo that draws one."""
