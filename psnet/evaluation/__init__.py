"""Measuring PS-Net: detection, landmarks, retrieval, verdicts and ablations, each figure with its interval."""
