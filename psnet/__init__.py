"""PS-Net: garments compared region by region (Lang et al., "Which is Plagiarism", CVPR 2020).

Images and tensors only; needs torch, torchvision, timm and safetensors; knows nothing of Ray, Parquet or S3.
"""

__version__ = "0.1.0"
