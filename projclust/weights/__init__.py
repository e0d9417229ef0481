"""How much each row of the table matters: names of row weights, and the frequencies behind them."""
