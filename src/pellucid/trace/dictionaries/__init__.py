"""Dictionaries of features: sparse autoencoders (SAEs), transcoders, cross-layer transcoders and crosscoders."""
