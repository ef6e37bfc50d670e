"""Recurrent layers: what a layer keeps of the tokens before is a state of fixed size."""
