"""Reports as JSON, Markdown and HTML, from what a run or an evaluation wrote. Reads files, computes no model."""
