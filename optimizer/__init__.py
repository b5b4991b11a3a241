"""
LLM Auto Optimizer: the kernel and the parent process.
"""

__version__ = "0.1.0"
