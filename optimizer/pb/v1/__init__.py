"""
Generated from protos/llm/optimizer/v1 by protos/generate.py; do not edit.
"""
