"""Operations: what each computes, its reference, and the providers that can serve it."""
