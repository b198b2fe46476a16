"""What ``top_k_top_p_sampling`` launches for rows that keep many tokens."""
