"""``tskd serve``: a bundle behind an HTTP interface and a page, on the CPU, without torch; uploads stay in memory."""
