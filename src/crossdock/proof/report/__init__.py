"""The report of `verify` as one page of HTML that needs nothing else: `page.render`."""
