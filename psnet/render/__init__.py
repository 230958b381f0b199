"""Parametric garments: designs, flat drawings with exact landmarks, photographs of them, copies, and
catalogues."""
