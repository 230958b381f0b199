"""Figures by the conventions of the public benchmarks."""
