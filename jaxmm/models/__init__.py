"""The vision tower, the connector, the decoder and the parts they share."""
