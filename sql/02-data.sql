-- The first rows of the sample.

INSERT INTO products (name, price, stock, tags, attributes) VALUES
	('Field notebook', 7.90, 120, '{paper,stationery}', '{"pages": 48, "ruled": true}'),
	('Fountain pen', 64.00, 15, '{stationery}', '{"nib": "F"}'),
	('Enamel mug', 14.50, 60, '{kitchen}', NULL),
	('Wool blanket', 129.00, 8, '{home,winter}', '{"size": [130, 180]}'),
	('Desk lamp', 89.95, 22, '{home,office}', '{"watt": 7.5}'),
	('Café press', 39.00, 31, '{kitchen}', '{"cups": 4}'),
	('Hand saw', 27.25, 18, '{tools}', NULL),
	('Seed box', 19.00, 44, '{garden}', '{"kinds": 12}');

INSERT INTO orders (product_id, customer, quantity)
SELECT 1 + n % 8, (ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Zoë'])[1 + n % 5], 1 + n % 3
FROM generate_series(1, 20) AS n;
