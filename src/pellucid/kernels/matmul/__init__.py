"""Matrix products: packed weights, activation blocks, and the products of both."""
