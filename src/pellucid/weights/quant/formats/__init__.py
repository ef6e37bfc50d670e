"""The block formats. A module here holds one or more ``Format``s; nothing is listed twice."""
