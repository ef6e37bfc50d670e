"""The sources. A module here holds one ``SOURCE``; nothing is listed twice."""
