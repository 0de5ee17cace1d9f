"""What the pickles of a checkpoint would do if somebody else's loader ran them. Nothing is run."""

from crossdock.scan.contents import Finding
from crossdock.scan.folder import Report, scan

__all__ = ["Finding", "Report", "scan"]
