"""Measuring PS-Net: detection, landmarks, retrieval, verdicts and ablations with intervals, and figures by
the conventions of public benchmarks."""
