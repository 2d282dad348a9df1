"""The op table: the algebraic kind of each ATen operator, and the operands that carry relevance."""
