//! Text encoders: captions to embeddings, with frozen weights on one device.
