/**
 * The public name. An HTTP API listens on 443 only, so CloudFront stands in front of it: it answers port 80 with the
 * redirect to HTTPS, caches nothing, and passes the request on under the same name, which the HTTP API has as its own
 * custom domain with a certificate of its own region.
 */
import type { Settings } from "./settings";

/** AWS's managed policies: https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/using-managed-cache-policies.html */
const CACHING_DISABLED = "4135ea2d-6df8-44a3-9df3-4b5a84be39ad";
/** Passes the Host on, and CloudFront-Viewer-Address: the caller's address for the log. */
const ALL_VIEWER_AND_CLOUDFRONT_HEADERS = "33f36d7e-f396-46d9-90e0-52428a34d9dc";

export interface Edge {
  readonly domain: string;
  readonly url: $util.Output<string>;
  readonly distributionId: $util.Output<string>;
}

export function createEdge(settings: Settings, api: sst.aws.ApiGatewayV2): Edge | undefined {
  const { domain } = settings;
  if (domain === undefined) return undefined;
  // ACM asks for the same validation record in every region: with two certificates, the second finds it there.
  const dns = sst.aws.dns({ override: true });

  // The HTTP API under the public name: reached by CloudFront at its regional address, never by DNS.
  const certificate = new sst.aws.DnsValidatedCertificate("RegionalSsl", { domainName: domain, dns: $output(dns) });
  const apiDomain = new aws.apigatewayv2.DomainName("ApiDomain", {
    domainName: domain,
    domainNameConfiguration: {
      certificateArn: certificate.arn,
      endpointType: "REGIONAL",
      securityPolicy: "TLS_1_2",
    },
  });
  new aws.apigatewayv2.ApiMapping("ApiDomainMapping", {
    apiId: api.nodes.api.id,
    domainName: apiDomain.id,
    stage: "$default",
  });

  const edge = new sst.aws.Cdn("Edge", {
    comment: `Claude Projects state tracking API, ${settings.stage}`,
    // CloudFront takes its certificate from us-east-1; SST orders one there where the API's is of another region.
    domain: { name: domain, dns, cert: settings.region === "us-east-1" ? certificate.arn : undefined },
    origins: [
      {
        originId: "api",
        domainName: apiDomain.domainNameConfiguration.apply((c) => c.targetDomainName),
        customOriginConfig: {
          httpPort: 80,
          httpsPort: 443,
          // The name in the TLS handshake is the forwarded Host, which the API's certificate carries.
          originProtocolPolicy: "https-only",
          originSslProtocols: ["TLSv1.2"],
          // Above the function's 30 seconds, so that its own 504 is what the caller sees.
          originReadTimeout: 35,
          originKeepaliveTimeout: 5,
        },
      },
    ],
    defaultCacheBehavior: {
      targetOriginId: "api",
      viewerProtocolPolicy: "redirect-to-https",
      allowedMethods: ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"],
      cachedMethods: ["GET", "HEAD"],
      cachePolicyId: CACHING_DISABLED,
      originRequestPolicyId: ALL_VIEWER_AND_CLOUDFRONT_HEADERS,
      compress: false,
    },
    transform: {
      distribution: (args) => {
        args.httpVersion = "http2and3";
        args.isIpv6Enabled = true;
        // Callers are developers' machines near the one region.
        args.priceClass = "PriceClass_100";
      },
    },
  });
  return { domain, url: $interpolate`https://${domain}`, distributionId: edge.nodes.distribution.id };
}
