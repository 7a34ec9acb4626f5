"use strict";

// No validator: it would send the document's address to a host outside. Nothing is kept, the key least of all.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#document",
  deepLinking: true,
  docExpansion: "list",
  persistAuthorization: false,
  validatorUrl: null,
});
