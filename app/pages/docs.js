/* global SwaggerUIBundle */
SwaggerUIBundle({ dom_id: "#docs", url: "openapi.json", deepLinking: true, tryItOutEnabled: true });
